"""Tiers: which kind of model a task needs, and which models are of that kind.

Owns the three tiers, which tier a task type has, and the models of each tier in order of preference. Leaves prices to
``pricing`` and the question whether there is money left to the budgets.

Models change monthly, so they are configuration: every function takes a plain string, ``LLMModel`` has names for
convenience only, and ``SWARM_TIER_FAST``, ``SWARM_TIER_BALANCED`` and ``SWARM_TIER_PREMIUM`` replace the defaults.
Task types are open too: one that nobody mapped is balanced, neither the cheapest guess nor the dearest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from ..errors import ConfigurationError, InvalidInputError

if TYPE_CHECKING:
    from ..config import Settings

__all__ = ["FAST_MAX_INPUT_TOKENS", "TASK_TIER_MAPPING", "LLMModel", "LLMTier", "TierTable", "client_of"]

# claude-haiku-5-5 bills a request at five times its price above 100,000 tokens; the rest is slack for a wrong count.
FAST_MAX_INPUT_TOKENS = 90_000


class LLMTier(StrEnum):
    """How good, and how dear, a model is."""

    FAST = "fast"  #: screening, filters, labels
    BALANCED = "balanced"  #: analysis, debate, drafts
    PREMIUM = "premium"  #: what is published


class LLMModel(StrEnum):
    """Names of some models. Any other name is as good, as a plain string."""

    GPT4_TURBO = "gpt-4-turbo-preview"
    GPT4 = "gpt-4"
    GPT35_TURBO = "gpt-3.5-turbo"
    GPT35_TURBO_16K = "gpt-3.5-turbo-16k"
    CLAUDE_OPUS = "claude-3-opus"
    CLAUDE_SONNET = "claude-3-sonnet"
    CLAUDE_HAIKU = "claude-3-haiku"
    GEMINI_PRO = "gemini-pro"
    GEMINI_ULTRA = "gemini-ultra"
    # The defaults of the tiers.
    GPT_6_LUNA = "gpt-6-luna"
    GPT_6_1_TERRA = "gpt-6.1-terra"
    GPT_6_1_SOL = "gpt-6.1-sol"
    CLAUDE_HAIKU_5_5 = "claude-haiku-5-5"
    CLAUDE_SONNET_5_5 = "claude-sonnet-5-5"
    CLAUDE_OPUS_5_5 = "claude-opus-5-5"


TASK_TIER_MAPPING: dict[str, LLMTier] = {
    "news_scout": LLMTier.FAST,
    "content_filter": LLMTier.FAST,
    "topic_tagging": LLMTier.FAST,
    "sentiment_analysis": LLMTier.FAST,
    "content_analysis": LLMTier.BALANCED,
    "fact_check": LLMTier.BALANCED,
    "debate_argument": LLMTier.BALANCED,
    "consensus_vote": LLMTier.BALANCED,
    "script_draft": LLMTier.BALANCED,
    "visual_plan": LLMTier.BALANCED,
    "script_final": LLMTier.PREMIUM,
    "script_revision": LLMTier.PREMIUM,
    "video_review": LLMTier.PREMIUM,
    "quality_assurance": LLMTier.PREMIUM,
}

DEFAULT_MODELS: dict[str, dict[LLMTier, str]] = {
    "openai": {
        LLMTier.FAST: LLMModel.GPT_6_LUNA,
        LLMTier.BALANCED: LLMModel.GPT_6_1_TERRA,
        LLMTier.PREMIUM: LLMModel.GPT_6_1_SOL,
    },
    "anthropic": {
        LLMTier.FAST: LLMModel.CLAUDE_HAIKU_5_5,
        LLMTier.BALANCED: LLMModel.CLAUDE_SONNET_5_5,
        LLMTier.PREMIUM: LLMModel.CLAUDE_OPUS_5_5,
    },
}

# Old names keep the tier that the product document gives them, so that their usage is counted where it belongs.
OLD_TIERS: dict[str, LLMTier] = {
    LLMModel.GPT35_TURBO: LLMTier.FAST,
    LLMModel.GPT35_TURBO_16K: LLMTier.FAST,
    LLMModel.CLAUDE_HAIKU: LLMTier.FAST,
    LLMModel.GEMINI_PRO: LLMTier.BALANCED,
    LLMModel.GPT4_TURBO: LLMTier.BALANCED,
    LLMModel.CLAUDE_SONNET: LLMTier.BALANCED,
    LLMModel.GPT4: LLMTier.PREMIUM,
    LLMModel.CLAUDE_OPUS: LLMTier.PREMIUM,
    LLMModel.GEMINI_ULTRA: LLMTier.PREMIUM,
}

DATE_AT_END = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")  # providers answer with the dated name of a model


class TierTable:
    """Which tier a task type has, and which models a tier has.

    Args:
        models: for some tiers, the models to use instead of the defaults, best first.
        task_tiers: for some task types, the tier to use instead of the one in ``TASK_TIER_MAPPING``.
        providers: in which order the defaults stand, ``openai`` and ``anthropic``.
        fast_max_input_tokens: a longer prompt does not belong to the fast tier.

    Raises:
        ConfigurationError: a tier that does not exist, or one without a model.
    """

    def __init__(
        self,
        models: Mapping[str, Sequence[str]] | None = None,
        *,
        task_tiers: Mapping[str, str] | None = None,
        providers: Iterable[str] = ("openai", "anthropic"),
        fast_max_input_tokens: int = FAST_MAX_INPUT_TOKENS,
    ) -> None:
        first = dict.fromkeys([*(each for each in providers if each in DEFAULT_MODELS), *DEFAULT_MODELS])
        self._models = {tier: [str(DEFAULT_MODELS[each][tier]) for each in first] for tier in LLMTier}
        for name, given in (models or {}).items():
            tier = _tier(name, where="models")
            if isinstance(given, str) or not given or not all(isinstance(each, str) and each for each in given):
                raise ConfigurationError(
                    f"the models of tier {tier.value}: found {given!r}, needed a list of at least one"
                )
            self._models[tier] = list(dict.fromkeys(map(str, given)))
        own = {task: _tier(name, where=f"task type {task!r}") for task, name in (task_tiers or {}).items()}
        self._task_tiers = TASK_TIER_MAPPING | own
        self._fast_max_input_tokens = fast_max_input_tokens

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The table that the settings ask for: their models, else the defaults, the provider with a key first."""
        both = {"openai": settings.openai_is_configured, "anthropic": settings.anthropic_is_configured}
        return cls(settings.tier_models, providers=sorted(both, key=lambda name: not both[name]))

    def get_tier(self, task_type: str) -> LLMTier:
        """The tier of *task_type*; ``balanced`` for one that is in no mapping."""
        return self._task_tiers.get(task_type, LLMTier.BALANCED)

    def tier_of_model(self, model: str) -> LLMTier | None:
        """The tier that *model* stands in, the cheapest if it is several; None for a model of no tier."""
        model = str(model)
        for name in (model, DATE_AT_END.sub("", model)):
            if found := next((tier for tier in LLMTier if name in self._models[tier]), OLD_TIERS.get(name)):
                return found
        return None

    def models(self, tier: LLMTier | str, providers: Iterable[str] | None = None) -> list[str]:
        """The models of *tier*, best first; with *providers* only those that one of these is asked for.

        Raises:
            InvalidInputError: there is no such tier.
        """
        found = self._models[_checked(tier)]
        allowed = None if providers is None else set(providers)
        return [model for model in found if allowed is None or client_of(model) in allowed]

    def cheaper(self, tier: LLMTier | str) -> LLMTier | None:
        """The next tier down, None below ``fast``."""
        order = list(LLMTier)
        place = order.index(_checked(tier))
        return order[place - 1] if place else None

    def max_input_tokens(self, tier: LLMTier | str) -> int | None:
        """How long a prompt may be in *tier*; None if only the model limits it."""
        return self._fast_max_input_tokens if _checked(tier) is LLMTier.FAST else None

    def check(self, known: Callable[[str], bool]) -> None:
        """Make sure that every model has a price, by asking *known* (such as ``Prices.known``).

        Raises:
            ConfigurationError: naming each model that has none, and its tier.
        """
        strange = [f"{model} ({tier.value})" for tier in LLMTier for model in self._models[tier] if not known(model)]
        if strange:
            raise ConfigurationError(
                f"no price is known for these models of the tiers: {', '.join(strange)}; "
                "add them to the file that SWARM_PRICES names, or change SWARM_TIER_FAST, _BALANCED or _PREMIUM"
            )


def client_of(model: str) -> str:
    """Which client is asked for *model*: ``anthropic`` for a Claude, ``openai`` for all others.

    All others, since every service that speaks OpenAI's language is reached by the same client.
    """
    return "anthropic" if str(model).startswith("claude") else "openai"


def _checked(tier: str) -> LLMTier:
    try:
        return LLMTier(tier)
    except ValueError as error:
        raise InvalidInputError("tier", found=tier, needed=f"one of: {', '.join(LLMTier)}") from error


def _tier(name: str, *, where: str) -> LLMTier:
    try:
        return LLMTier(name)
    except ValueError as error:
        raise ConfigurationError(f"{where}: found tier {name!r}, needed one of: {', '.join(LLMTier)}") from error
