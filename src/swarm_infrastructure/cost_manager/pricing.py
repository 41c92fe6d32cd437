"""Prices: what a model's tokens cost, in whole nano-dollars.

Owns where prices come from and the arithmetic on them. Leaves limits and bookings to the budgets, and the choice of a
model to ``tiers``.

Three sources, the first that knows a model wins: the user's own file (``SWARM_PRICES``), the snapshot that the installed
genai-prices brings (no network), and a table here of old names that it does not know. A model that none of them knows is
refused: a price that is not known must not count as nothing.

Two rules keep a call from being priced too low. A long prompt moves the *whole* request to the dearer step, input and
output alike. And a surcharge (``priority``, ``fast``) that no source lists is an unknown price, where a discount
(``batch``, ``flex``) that no source lists is just not given.

The user's file, TOML or JSON, has dollars per million tokens. Only ``input`` and ``output`` are required; without
``cached`` or ``cache_write`` these tokens cost what ``input`` costs::

    ["house-model-7b"]
    input = 0.10
    output = "0.40"
    cached = "0.01"
    cache_write = "0.125"
    provider = "house"
    steps = [{ above_tokens = 128000, input = 0.20, output = 0.80 }]
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal, InvalidOperation, localcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigurationError, InvalidInputError, UnknownPriceError
from ..usage import TokenUsage
from .money import to_nano

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider
    from genai_prices.types import ModelPrice as GenaiPrice

__all__ = ["ModelPrice", "PriceStep", "Prices"]

MTOK = 10**6
MOST_PER_MTOK = Decimal(1_000_000)  # a dollar a token: whatever is above it is a slip of the unit
EXACT = Context(prec=80)  # digits; prices have some ten of them and token counts too, so that no product is rounded

# The words that providers use for "as usual".
USUAL = {"auto", "default", "scale", "standard", "standard_only"}
# What genai-prices wants to hear for each service tier. It ignores a key that it does not know, so a test checks that
# each of these changes a price. OpenAI's fast is a service tier, Anthropic's a speed.
CONTEXTS = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
    "fast": {"service_tier": "fast", "speed": "fast"},
}
SURCHARGES = {"fast", "priority"}

FILE, GENAI, BUILT_IN, DEFAULT = "file", "genai-prices", "built in", "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceStep:
    """What each token of a request costs, in dollars per million, if its whole input has more than ``above_tokens``."""

    above_tokens: int = 0  #: 0 for the first step, which also prices a request without input
    input: Decimal
    output: Decimal | None  #: None for a model that gives no text, such as an embedder
    cached: Decimal  #: input read from the provider's cache
    cache_write: Decimal  #: input written to it, to be kept for its usual time (at Anthropic: 5 minutes)
    reasoning: Decimal | None = None  #: the part of the output that is reasoning; None: as the rest of it

    @property
    def dearest_output(self) -> Decimal | None:
        """The higher price of an output token, reasoning or not."""
        return max((price for price in (self.output, self.reasoning) if price is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPrice:
    """The prices of one model, and where they come from."""

    model: str  #: the name that was asked for
    provider: str  #: who bills it, "" if the source does not say
    source: str  #: file, genai-prices, built in, or default
    steps: tuple[PriceStep, ...]  #: one, or more for a model that bills long prompts differently; in ascending order
    per_request: Decimal = Decimal(0)  #: dollars for each call, whatever its tokens

    def step(self, input_tokens: int) -> PriceStep:
        """The step that a request of so much input falls in."""
        return next((step for step in reversed(self.steps[1:]) if input_tokens > step.above_tokens), self.steps[0])

    def cost(self, usage: TokenUsage) -> int:
        """What *usage* cost, in nano-dollars, rounded up.

        Raises:
            UnknownPriceError: it has output, and only the input has a price.
        """
        step = self.step(usage.prompt_tokens)
        reasoning = step.output if step.reasoning is None else step.reasoning
        return self._nano(
            (usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens, step.input),
            (usage.cached_tokens, step.cached),
            (usage.cache_write_tokens, step.cache_write),
            (usage.completion_tokens - usage.reasoning_tokens, step.output),
            (usage.reasoning_tokens, reasoning),
        )

    def estimate(self, input_tokens: int, max_output_tokens: int, *, cache_write: bool = False) -> int:
        """The most that a call can cost which stays within these bounds, in nano-dollars.

        Nothing is taken to come from the cache. With *cache_write* all input may be written to it, at the price of that.
        """
        costs = []
        for step, after in zip(self.steps, [*self.steps[1:], None], strict=True):
            if step is not self.steps[0] and input_tokens <= step.above_tokens:
                break
            # The fullest request of each step within reach: the last is not the dearest if long prompts get a rebate.
            most = input_tokens if after is None else min(input_tokens, after.above_tokens)
            price = max(step.input, step.cached, step.cache_write if cache_write else step.input)
            costs.append(self._nano((most, price), (max_output_tokens, step.dearest_output)))
        return max(costs)

    def _nano(self, *parts: tuple[int, Decimal | None]) -> int:
        with localcontext(EXACT):
            dollars = self.per_request
            for tokens, per_mtok in parts:
                if not tokens:
                    continue
                if per_mtok is None:
                    raise UnknownPriceError(f"{self.model} (output)")
                dollars += tokens * per_mtok / MTOK
        return to_nano(dollars, field=f"cost of a call to {self.model!r}")


# Old names that genai-prices has no price for. Dollars per million tokens.
OLD_MODELS = {
    # Google never published a price per token for Gemini 1.0 Ultra. This is the product document's for the premium tier,
    # $0.06 per 1K tokens, which is above that of every Gemini that came later.
    "gemini-ultra": PriceStep(input=Decimal(60), output=Decimal(60), cached=Decimal(60), cache_write=Decimal(60)),
}


class Prices:
    """The prices of all models that can be called.

    Args:
        path: the user's own file, ``.toml`` or ``.json``; it is read once, here.
        unknown: ``deny`` refuses a model without a price; a number is what a million of its tokens count for instead, in
            dollars, input and output alike.

    Raises:
        ConfigurationError: the file can't be read or used; it names every fault with its model.
        InvalidInputError: *unknown* is neither ``deny`` nor a price above 0.
    """

    def __init__(self, path: Path | str | None = None, unknown: Literal["deny"] | Decimal = "deny") -> None:
        self._own = read_prices(Path(path)) if path is not None else {}
        self._default: PriceStep | None = None
        if unknown != "deny":
            price = _price(unknown)
            if not price:  # 0 as well: a model that nobody knows must not be free
                raise InvalidInputError(
                    "unknown", found=unknown, needed="'deny', or dollars per million tokens above 0"
                )
            self._default = PriceStep(input=price, output=price, cached=price, cache_write=price)

    def known(self, model: str, *, provider: str | None = None) -> bool:
        """Whether a source has a price for *model*; the default for unknown ones does not count."""
        return self._look_up(model, provider, "", None) is not None

    def get(
        self,
        model: str,
        *,
        provider: str | None = None,
        service_tier: str | None = None,
        batch: bool = False,
        at: datetime | None = None,
    ) -> ModelPrice:
        """The prices of *model*.

        Args:
            model: any name that a provider takes, with or without the date at its end.
            provider: who bills it, by genai-prices' id (``openai``, ``anthropic``, ``azure``, ``aws``, ...) or as in the
                user's file; None: whom the name belongs to.
            service_tier: ``flex``, ``priority``, ``fast`` or ``batch``; None, ``default``, ``standard`` and ``auto``: as usual.
            batch: sent through the provider's batch interface.
            at: when it was called, for prices that have changed; None: now. Without a zone it is UTC.

        Raises:
            UnknownPriceError: no source has a price for the model, or for the surcharge of this service tier.
            InvalidInputError: there is no such service tier, or it does not go with *batch*.
        """
        if not isinstance(model, str) or not model:
            raise InvalidInputError("model", found=model, needed="a model's name")
        kind = _kind(service_tier, batch)
        if found := self._look_up(model, provider, kind, at):
            return found
        if kind in SURCHARGES and self._look_up(model, provider, "", at):
            raise UnknownPriceError(f"{model} ({kind})")
        if self._default is not None:
            return ModelPrice(model=str(model), provider=provider or "", source=DEFAULT, steps=(self._default,))
        raise UnknownPriceError(str(model), known=self._near(model))

    def cost(
        self,
        model: str,
        usage: TokenUsage,
        *,
        provider: str | None = None,
        service_tier: str | None = None,
        batch: bool = False,
        at: datetime | None = None,
    ) -> int:
        """What a call that used *usage* cost, in nano-dollars, rounded up. For the rest see ``get``."""
        return self.get(model, provider=provider, service_tier=service_tier, batch=batch, at=at).cost(usage)

    def estimate(
        self,
        model: str,
        input_tokens: int,
        max_output_tokens: int,
        *,
        cache_write: bool = False,
        provider: str | None = None,
        service_tier: str | None = None,
        batch: bool = False,
        at: datetime | None = None,
    ) -> int:
        """The most that a call can cost, in nano-dollars: what to reserve before it. For the rest see ``get``.

        It is at least the cost of any usage of up to *input_tokens* and *max_output_tokens*.

        Args:
            model: its name.
            input_tokens: of the prompt, counted or guessed too high.
            max_output_tokens: what the request allows, reasoning included.
            cache_write: the provider may write the prompt to its cache, which costs more than to read it afresh. Without
                it, a usage with ``cache_write_tokens`` is out of bounds.
            provider: as for ``get``; so are *service_tier*, *batch* and *at*.
            service_tier: the one that is asked for.
            batch: through the batch interface.
            at: when.

        Raises:
            UnknownPriceError: as for ``get``.
            InvalidInputError: a count that is negative or no whole number.
        """
        for name, count in (("input_tokens", input_tokens), ("max_output_tokens", max_output_tokens)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise InvalidInputError(name, found=count, needed="a whole number, 0 or more")
        price = self.get(model, provider=provider, service_tier=service_tier, batch=batch, at=at)
        return price.estimate(input_tokens, max_output_tokens, cache_write=cache_write)

    def rows(self, models: Iterable[str] | None = None) -> list[ModelPrice]:
        """The prices of *models*, unknown ones left out; without names, those of the user's file and of this module."""
        names = dict.fromkeys([*self._own, *OLD_MODELS] if models is None else map(str, models))
        return [found for name in names if (found := self._look_up(name, None, "", None))]

    def _look_up(self, model: str, provider: str | None, kind: str, at: datetime | None) -> ModelPrice | None:
        model = str(model)  # LLMModel.GPT4 is shown as its value
        own = self._own.get(model)
        if own is not None and (not provider or not own.provider or provider == own.provider):
            return None if kind in SURCHARGES else own
        found = _genai(model, provider, kind, at or datetime.now(tz=UTC))
        if found is None and model in OLD_MODELS and kind not in SURCHARGES:
            return ModelPrice(model=model, provider=provider or "", source=BUILT_IN, steps=(OLD_MODELS[model],))
        return found

    def _near(self, model: str) -> str:
        """A known name that is much like *model*, or nothing."""
        from genai_prices.data_snapshot import get_snapshot

        # Only of providers that a name alone leads to: the others' models are not found without a provider.
        names = {each.id for provider in get_snapshot().providers if provider.model_match for each in provider.models}
        near = difflib.get_close_matches(model, sorted({*self._own, *OLD_MODELS, *names}), n=5, cutoff=0.6)
        return next((name for name in near if self.known(name)), "")


def _kind(service_tier: str | None, batch: bool) -> str:
    """The one of ``CONTEXTS`` that applies, or nothing."""
    kind = "" if not service_tier or service_tier in USUAL else service_tier
    if kind and kind not in CONTEXTS:
        known = ", ".join([*CONTEXTS, *sorted(USUAL)])
        raise InvalidInputError("service_tier", found=service_tier, needed=f"none, or one of: {known}")
    if batch and kind not in ("", "batch"):
        raise InvalidInputError("service_tier", found=service_tier, needed="none together with batch")
    return "batch" if batch else kind


def _genai(model: str, provider_id: str | None, kind: str, at: datetime) -> ModelPrice | None:
    """What genai-prices knows, or nothing; also if it knows the model but not its surcharge or its tokens' price."""
    from genai_prices.data_snapshot import get_snapshot

    try:
        provider, info = get_snapshot().find_provider_model(model, None, provider_id, None)
    except LookupError:
        return None
    if kind in SURCHARGES and not _has_variant(provider, info, CONTEXTS[kind], at):
        return None
    # Like genai-prices itself: a variant is not taken from the maker's list for a provider that resells the model.
    sells = any(each is info for each in provider.models)
    prices = info.get_prices(at, CONTEXTS[kind] if kind and sells else None)
    if prices.input_mtok is None:  # priced by the hour or the page
        return None
    return ModelPrice(
        model=model, provider=provider.id, source=GENAI, steps=_steps(prices),
        per_request=_base(prices.requests_kcount) / 1000,
    )  # fmt: skip


def _has_variant(provider: Provider, info: ModelInfo, context: Mapping[str, str], at: datetime) -> bool:
    return any(each is info for each in provider.models) and any(
        variant.when.items() <= context.items() and (variant.constraint is None or variant.constraint.active(at))
        for variant in info.price_variants or ()
    )


def _base(price: Any) -> Decimal:
    """The price below all steps, 0 if there is none."""
    return Decimal(0) if price is None else getattr(price, "base", price)


def _steps(prices: GenaiPrice) -> tuple[PriceStep, ...]:
    kept = {
        "input": prices.input_mtok,
        "output": prices.output_mtok,
        "cached": prices.cache_read_mtok,
        "cache_write": prices.cache_write_mtok,
        "reasoning": prices.output_reasoning_mtok,
    }
    starts = sorted({tier.start for price in kept.values() for tier in getattr(price, "tiers", ())})

    def at(price: Any, start: int | None) -> Decimal | None:
        if price is None:
            return None
        reached = [tier.price for tier in getattr(price, "tiers", ()) if start is not None and tier.start <= start]
        return reached[-1] if reached else _base(price)

    def step(start: int | None) -> PriceStep:
        found = {name: at(price, start) for name, price in kept.items()}
        fresh = found["input"]
        assert fresh is not None
        return PriceStep(
            above_tokens=start or 0,
            input=fresh,
            output=found["output"],
            cached=fresh if found["cached"] is None else found["cached"],
            cache_write=fresh if found["cache_write"] is None else found["cache_write"],
            reasoning=found["reasoning"],
        )

    return tuple(step(start) for start in (None, *starts))


# -- the user's own file -----------------------------------------------------------------------------------------------


def read_prices(path: Path) -> dict[str, ModelPrice]:
    """The prices in the file at *path*, by model.

    Raises:
        ConfigurationError: naming the file, and every fault in it with its model.
    """
    where = f"SWARM_PRICES: {path}"
    try:
        read = {".toml": _read_toml, ".json": _read_json}[path.suffix.lower()]
    except KeyError as error:
        raise ConfigurationError(f"{where}: found {path.suffix or 'no ending'!r}, needed .toml or .json") from error
    try:
        entries = read(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"{where}: found {error.strerror or error}, needed a file that can be read") from error
    except (ValueError, RecursionError) as error:  # no TOML, no JSON, no UTF-8
        raise ConfigurationError(f"{where}: found no {path.suffix[1:].upper()} ({error})") from error
    if not isinstance(entries, dict):
        raise ConfigurationError(
            f"{where}: found {type(entries).__name__}, needed an object with a model under each name"
        )
    faults: list[str] = []
    prices = {model: _entry(model, entry, faults) for model, entry in entries.items()}
    if faults:
        raise ConfigurationError(f"{where} can't be used:" + "".join(f"\n  - {fault}" for fault in faults))
    return {model: price for model, price in prices.items() if price}


def _read_toml(text: str) -> object:
    return tomllib.loads(text, parse_float=Decimal)


def _read_json(text: str) -> object:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} twice in one object")
        return dict(pairs)

    return json.loads(text, parse_float=Decimal, object_pairs_hook=once)


def _entry(model: str, entry: object, faults: list[str]) -> ModelPrice | None:
    """One model of the file; what is wrong with it is added to *faults*."""
    before = len(faults)
    if not isinstance(entry, dict):
        faults.append(f"{model}: found {entry!r}, needed a table with input and output")
        return None
    provider = entry.get("provider", "")
    if not isinstance(provider, str):
        faults.append(f"{model}.provider: found {provider!r}, needed a name")
    steps = [_step(model, entry, {"provider", "steps"}, faults)]
    later = entry.get("steps", [])
    if not isinstance(later, list) or not all(isinstance(each, dict) for each in later):
        faults.append(f"{model}.steps: found {later!r}, needed a list of tables with above_tokens, input and output")
        later = []
    reached = 0
    for n, each in enumerate(later):
        name = f"{model}.steps[{n}]"
        above = each.get("above_tokens")
        if not isinstance(above, int) or isinstance(above, bool) or above <= reached:
            faults.append(f"{name}.above_tokens: found {above!r}, needed a whole number above {reached}")
        else:
            reached = above
        steps.append(_step(name, each, {"above_tokens"}, faults))
    found = tuple(step for step in steps if step)
    if len(faults) > before:
        return None
    return ModelPrice(model=model, provider=provider, source=FILE, steps=found)


def _step(name: str, entry: Mapping[str, object], others: set[str], faults: list[str]) -> PriceStep | None:
    fields = {"input": True, "output": True, "cached": False, "cache_write": False}
    for key in entry.keys() - fields.keys() - others:
        hint = f'; a name with a dot in it needs quotes: ["{name}.{key}"]' if isinstance(entry[key], dict) else ""
        faults.append(
            f"{name}.{key}: found no such field, needed one of: {', '.join([*fields, *sorted(others)])}{hint}"
        )
    prices: dict[str, Decimal] = {}
    for field, required in fields.items():
        if field not in entry and not required:
            continue
        price = _price(entry.get(field))
        if price is None:
            found = repr(entry[field]) if field in entry else "nothing"
            faults.append(
                f"{name}.{field}: found {found}, needed dollars per million tokens, from 0 to {MOST_PER_MTOK:,}"
            )
        else:
            prices[field] = price
    if not {"input", "output"} <= prices.keys():
        return None
    above = entry.get("above_tokens", 0)
    return PriceStep(
        above_tokens=above if isinstance(above, int) else 0,
        input=prices["input"],
        output=prices["output"],
        cached=prices.get("cached", prices["input"]),
        cache_write=prices.get("cache_write", prices["input"]),
    )


def _price(value: object) -> Decimal | None:
    """*value* as dollars per million tokens, or nothing if it can't be that."""
    if isinstance(value, bool) or not isinstance(value, (Decimal, float, int, str)):
        return None
    try:
        price = Decimal(repr(value) if isinstance(value, float) else value)
    except (InvalidOperation, ValueError):
        return None
    return price if price.is_finite() and 0 <= price <= MOST_PER_MTOK else None
