"""``swarm models``: the models of each tier, what they cost, and whether their provider is configured. Needs no Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .render import Column, Output, OutputOption, show_rows

if TYPE_CHECKING:
    from ..config import Settings
    from ..cost_manager.pricing import Prices
    from ..cost_manager.tiers import TierTable

__all__ = ["models"]

KEYS = {"openai": "OPENAI_API_KEY or OPENAI_BASE_URL", "anthropic": "ANTHROPIC_API_KEY"}


def models(output: OutputOption = Output.TABLE) -> None:
    """List the models of each tier, best first, and what they cost.

    Prices are dollars per million tokens. Reachable: the provider's key or address is set; nobody is called.
    Exit code 3 if a model has no price and SWARM_UNKNOWN_PRICE sets none either: it would not be called.
    """
    from ..config import Settings
    from ..cost_manager.pricing import Prices
    from ..cost_manager.tiers import TierTable

    settings = Settings.load()
    prices = Prices(settings.prices_path)
    table = TierTable.from_settings(settings)
    show_rows(_rows(settings, prices, table), COLUMNS, output)
    if not settings.unknown_price:
        table.check(prices.known)


def _long(row: dict[str, Any]) -> str:
    return "; ".join(
        f"above {step['above_tokens']:,}: {step['input']:f} in, {step['output']:f} out" for step in row["long_prompts"]
    )


def _dollars(name: str) -> Column:
    return Column(
        f"{name} $/M",
        lambda row: "-" if row[f"{name}_usd_per_mtok"] is None else f"{row[f'{name}_usd_per_mtok']:f}",
        right=True,
    )


COLUMNS = [
    Column("tier", lambda row: row["tier"]),
    Column("model", lambda row: row["model"]),
    _dollars("input"),
    _dollars("cached"),
    _dollars("output"),
    Column("reachable", lambda row: "yes" if row["reachable"] else f"no: set {row['needs']}", fold=True),
    Column("long prompts", lambda row: _long(row) or "-", fold=True),
    Column("price from", lambda row: row["price_from"] or "nowhere", spare=True),
]


def _rows(settings: Settings, prices: Prices, table: TierTable) -> list[dict[str, Any]]:
    from ..cost_manager.tiers import LLMTier, client_of

    reachable = {"openai": settings.openai_is_configured, "anthropic": settings.anthropic_is_configured}
    rows = []
    for tier in LLMTier:
        for model in table.models(tier):
            found = next(iter(prices.rows([model])), None)
            first = found.steps[0] if found else None
            rows.append(
                {
                    "tier": tier.value,
                    "model": model,
                    "input_usd_per_mtok": first.input if first else None,
                    "cached_usd_per_mtok": first.cached if first else None,
                    "cache_write_usd_per_mtok": first.cache_write if first else None,
                    "output_usd_per_mtok": first.output if first else None,
                    "long_prompts": [
                        {
                            "above_tokens": step.above_tokens,
                            "input": step.input,
                            "cached": step.cached,
                            "cache_write": step.cache_write,
                            "output": step.output,
                        }
                        for step in (found.steps[1:] if found else ())
                    ],
                    "price_from": found.source if found else None,
                    "billed_by": found.provider or None if found else None,
                    "client": client_of(model),
                    "reachable": reachable[client_of(model)],
                    "needs": KEYS[client_of(model)],
                    "max_input_tokens": table.max_input_tokens(tier),
                }
            )
    return rows
