"""Money: prices, tiers, budgets that are asked before it is spent, and the ledger of what was."""

from __future__ import annotations

from ..errors import BudgetExceededError, UnknownPriceError
from ..usage import TokenUsage
from .audit import audit_money
from .budgets import AgentBudget, Budget, BudgetStatus, Limits, Spender
from .cost_manager import CostManager, MeteredCall
from .early_stop import EarlyStop
from .ledger import Ledger, LedgerBound
from .limiter import Pace, RateLimiter
from .pricing import Prices
from .records import Alert, Entry, Open, Paused, Recorded, Reservation, Wait
from .tiers import TASK_TIER_MAPPING, LLMModel, LLMTier, TierTable

__all__ = [
    "TASK_TIER_MAPPING",
    "AgentBudget",
    "Alert",
    "Budget",
    "BudgetExceededError",
    "BudgetStatus",
    "CostManager",
    "EarlyStop",
    "Entry",
    "LLMModel",
    "LLMTier",
    "Ledger",
    "LedgerBound",
    "Limits",
    "MeteredCall",
    "Open",
    "Pace",
    "Paused",
    "Prices",
    "RateLimiter",
    "Recorded",
    "Reservation",
    "Spender",
    "TierTable",
    "TokenUsage",
    "UnknownPriceError",
    "Wait",
    "audit_money",
]
