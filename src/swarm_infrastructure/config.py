"""Settings: what a user may choose, read from the environment and a ``.env`` file, checked as a whole.

Owns the names of the variables, their defaults and their rules, and is the only module that reads the environment.
Leaves the choice of a Redis to ``store.embedded`` and everything about a board's content to the board.

Variables are named for people (``SWARM_ID``), fields for code (``namespace``); ``Settings`` is the table of both.
Get one with ``Settings.load()``: it names every fault at once and shows no password.
"""

from __future__ import annotations

import os
import re
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from swarm_infrastructure.errors import ConfigurationError
from swarm_infrastructure.redis_url import SCHEMES, server_group

__all__ = ["Settings", "masked_url", "runtime_dirs"]

# A description says what the variable must look like: it is the "needed ..." of an error message.
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, description="seconds, a number greater than 0")]
SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False, description="seconds, 0 or more")]
Port = Annotated[int, Field(ge=1, le=65535, description="a port, a number from 1 to 65535")]
Switch = Annotated[bool, Field(description="1 or 0 (true or false)")]
ModelList = Annotated[
    str,
    Field(
        pattern=r"^\s*[^\s,]+(\s*,\s*[^\s,]+)*\s*$", description="names of models, best first, with commas between them"
    ),
]
SomePath = Annotated[Path, Field(description="a path")]


class Settings(BaseSettings):
    """What the user chose; in code by field name, in the environment and in ``.env`` by the name in capitals."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",  # a .env holds other programs' variables too
        env_file=".env",
        env_ignore_empty=True,  # "REDIS_PASSWORD=" in a .env means: not set
        validate_default=True,  # or a default would escape the checks against other fields
        hide_input_in_errors=True,  # inputs may hold passwords
    )

    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL")  #: wins over the four below
    redis_host: str | None = Field(
        None, validation_alias="REDIS_HOST", pattern=r"^[^\s/@?#]+$", description="a host name or address, no URL"
    )
    redis_port: Port = Field(6379, validation_alias="REDIS_PORT")
    redis_password: SecretStr | None = Field(None, validation_alias="REDIS_PASSWORD")
    redis_tls: Switch = Field(False, validation_alias="REDIS_TLS")
    redis_server: SomePath | None = Field(None, validation_alias="SWARM_REDIS_SERVER")  #: the binary to embed
    namespace: str = Field(  #: the first part of every key, so that swarms can share a Redis
        "default",
        validation_alias="SWARM_ID",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="1 to 64 of the characters A-Z a-z 0-9 _ . -",
    )
    data_dir: SomePath = Field(Path("./.swarm"), validation_alias="SWARM_DATA_DIR")  #: of the private Redis
    store_timeout_s: Seconds = Field(5, validation_alias="SWARM_STORE_TIMEOUT_S")  #: one call's wait for an answer
    store_retry_s: SecondsOrZero = Field(20, validation_alias="SWARM_STORE_RETRY_S")  #: how long a call is repeated
    durability: Literal["local", "replica"] | None = Field(  #: None: the server as it is; see docs/reliability.md
        None, validation_alias="SWARM_DURABILITY", description="local or replica"
    )
    replicas: int = Field(  #: that must have a write before it is answered, at the level replica
        1, validation_alias="SWARM_REPLICAS", ge=1, description="a whole number, 1 or more"
    )
    lease_s: Seconds | None = Field(None, validation_alias="SWARM_LEASE_S")  #: None: what the board says
    heartbeat_s: Seconds = Field(10, validation_alias="SWARM_HEARTBEAT_S")  #: between an agent's signs of life
    dead_after_s: Seconds = Field(45, validation_alias="SWARM_DEAD_AFTER_S")  #: four missed heartbeats and some slack
    events_keep: int = Field(  #: entries of a board's log; 0: all
        200_000, validation_alias="SWARM_EVENTS_KEEP", ge=0, description="entries, a whole number, 0 for all"
    )
    events_keep_s: Seconds = Field(300, validation_alias="SWARM_EVENTS_KEEP_S")  #: younger ones stay, however many
    ledger_keep: int = Field(  #: lines of the ledger, however young; 0: any number
        500_000, validation_alias="SWARM_LEDGER_KEEP", ge=0, description="lines, a whole number, 0 for any number"
    )
    ledger_keep_days: int = Field(
        40, validation_alias="SWARM_LEDGER_KEEP_DAYS", ge=1, description="days, a whole number of at least 1"
    )
    shutdown_grace_s: SecondsOrZero = Field(25, validation_alias="SWARM_SHUTDOWN_GRACE_S")  #: under Kubernetes' 30 s
    global_daily_budget: float | None = Field(  #: dollars a day of the whole swarm; None: no limit
        None, validation_alias="GLOBAL_DAILY_BUDGET", ge=0, allow_inf_nan=False, description="dollars a day, 0 or more"
    )
    enable_cost_alerts: Switch = Field(True, validation_alias="ENABLE_COST_ALERTS")
    llm_timeout_s: Seconds = Field(120, validation_alias="SWARM_LLM_TIMEOUT_S")  #: one model call
    llm_requests_per_minute: int | None = Field(  #: of the whole fleet, per model; None: no limit of ours
        None, validation_alias="SWARM_LLM_RPM", gt=0, description="calls a minute, a whole number above 0"
    )
    llm_tokens_per_minute: int | None = Field(
        None, validation_alias="SWARM_LLM_TPM", gt=0, description="tokens a minute, a whole number above 0"
    )
    default_max_retries: int = Field(  #: of what fails and may pass by itself
        3, validation_alias="DEFAULT_MAX_RETRIES", ge=0, le=100, description="a whole number from 0 to 100"
    )
    circuit_breaker_threshold: int = Field(  #: failures in a row that open a backend's breaker
        5, validation_alias="CIRCUIT_BREAKER_THRESHOLD", ge=1, le=1000, description="a whole number from 1 to 1000"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", validation_alias="SWARM_LOG_LEVEL", description="DEBUG, INFO, WARNING, ERROR or CRITICAL"
    )
    log_format: Literal["auto", "json", "console"] = Field(  #: auto: console on a terminal, else json
        "auto", validation_alias="SWARM_LOG_FORMAT", description="auto, json or console"
    )
    openai_api_key: SecretStr | None = Field(None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(  #: of any service that speaks OpenAI's language; it may need no key
        None,
        validation_alias="OPENAI_BASE_URL",
        pattern=r"^https?://[^\s/@][^\s@]*$",
        description="a URL that begins with http:// or https://, without user and password",
    )
    anthropic_api_key: SecretStr | None = Field(None, validation_alias="ANTHROPIC_API_KEY")
    tier_fast: ModelList | None = Field(None, validation_alias="SWARM_TIER_FAST")  #: None: the defaults of ``tiers``
    tier_balanced: ModelList | None = Field(None, validation_alias="SWARM_TIER_BALANCED")
    tier_premium: ModelList | None = Field(None, validation_alias="SWARM_TIER_PREMIUM")
    prices_path: SomePath | None = Field(None, validation_alias="SWARM_PRICES")  #: prices of models that we don't know
    unknown_price: Decimal | None = Field(  #: None: a model whose price nobody knows is not called
        None, validation_alias="SWARM_UNKNOWN_PRICE", gt=0, description="dollars per million tokens, above 0"
    )
    budget_tz: str = Field(  #: where a budget's hours and days begin
        "UTC", validation_alias="SWARM_BUDGET_TZ", description="a time zone's name, such as UTC or Europe/Berlin"
    )

    def __init__(self, **values: Any) -> None:
        # Not populate_by_name: it would read NAMESPACE and LOG_LEVEL from the environment too, which belong to others.
        super().__init__(**{_variable(name): value for name, value in values.items()})

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """The settings of this process: *overrides* (by field name), then the environment, then ``.env``.

        Raises:
            ConfigurationError: naming every variable that is wrong, what was found and what was needed.
        """
        faults = [f"{name}: found no such setting" for name in overrides if name not in cls.model_fields]
        settings = None
        try:
            settings = cls(**overrides)
        except ValidationError as error:
            faults += [_fault(detail) for detail in error.errors(include_url=False)]
            cause: Exception | None = error
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f".env: found a file that can't be read ({error}), needed UTF-8 text or no such file")
            cause = error
        else:
            cause = None
        if settings is None or faults:
            listed = "".join(f"\n  - {fault}" for fault in faults)
            raise ConfigurationError(f"the settings can't be used; set these right and start again:{listed}") from cause
        return settings

    def redis_url_from_env(self) -> str | None:
        """The Redis that the user named, password included: ``REDIS_URL``, else made from ``REDIS_HOST``; or None."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        if self.redis_host is None:
            return None
        scheme = "rediss" if self.redis_tls else "redis"
        host = f"[{self.redis_host}]" if ":" in self.redis_host and "[" not in self.redis_host else self.redis_host
        login = f":{quote(self.redis_password.get_secret_value(), safe='')}@" if self.redis_password else ""
        return f"{scheme}://{login}{host}:{self.redis_port}"

    @property
    def openai_is_configured(self) -> bool:
        """Whether OpenAI, or a service that speaks its language, can be asked; a service of one's own may need no key."""
        return self.openai_api_key is not None or self.openai_base_url is not None

    @property
    def anthropic_is_configured(self) -> bool:
        """Whether Anthropic can be asked."""
        return self.anthropic_api_key is not None

    @property
    def tier_models(self) -> dict[str, list[str]]:
        """The models, best first, of each tier for which the user named some."""
        named = {"fast": self.tier_fast, "balanced": self.tier_balanced, "premium": self.tier_premium}
        return {tier: [name.strip() for name in names.split(",")] for tier, names in named.items() if names}

    @field_validator("redis_url")
    @classmethod
    def _check_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and (fault := _url_fault(url.get_secret_value())):
            raise ValueError(f"REDIS_URL: {fault}, such as redis://localhost:6379/0 or unix:///run/redis.sock")
        return url

    @field_validator("durability")
    @classmethod
    def _name_a_redis_with_replicas(cls, durability: str | None, info: ValidationInfo) -> str | None:
        if durability == "replica" and info.data.get("redis_url") is None and info.data.get("redis_host") is None:
            raise ValueError(
                "SWARM_DURABILITY (replica) needs a Redis that has replicas, but the private one has none; set REDIS_URL"
            )
        return durability

    @field_validator("replicas")
    @classmethod
    def _count_replicas_where_they_count(cls, replicas: int, info: ValidationInfo) -> int:
        if replicas != 1 and info.data.get("durability", "replica") != "replica":  # missing if it is wrong itself
            raise ValueError(
                f"SWARM_REPLICAS ({replicas}) counts only with SWARM_DURABILITY=replica; set both or neither"
            )
        return replicas

    @field_validator("redis_port", mode="before")
    @classmethod
    def _read_port_of_a_link(cls, port: object) -> object:
        # Kubernetes gives every pod REDIS_PORT=tcp://10.0.0.7:6379 as soon as a service is called "redis".
        link = re.fullmatch(r"tcp://.*:(\d+)", port) if isinstance(port, str) else None
        return link[1] if link else port

    @field_validator("data_dir", "redis_server", "prices_path")
    @classmethod
    def _expand_home(cls, path: Path | None) -> Path | None:
        try:
            return path.expanduser() if path else None  # no shell has read the ~ of a .env file
        except RuntimeError as error:
            raise ValueError(f"{path}: found a ~ without a home folder, needed a full path") from error

    @field_validator("log_level", "log_format", "durability", mode="before")
    @classmethod
    def _accept_any_case(cls, word: object, info: ValidationInfo) -> object:
        words = [
            each for kind in (cls.model_fields[info.field_name or ""].annotation,)
            for part in (kind, *get_args(kind)) if get_origin(part) is Literal for each in get_args(part)
        ]  # fmt: skip
        return next((known for known in words if known.lower() == str(word).lower()), word)

    @field_validator("budget_tz")
    @classmethod
    def _find_zone(cls, name: str) -> str:
        try:
            if name != "UTC":  # which is there without a time zone database, too
                ZoneInfo(name)
        except (ZoneInfoNotFoundError, OSError, ValueError) as error:  # the last two: a folder of zones, no plain name
            raise ValueError(
                f"SWARM_BUDGET_TZ: found {name!r}, needed {cls.model_fields['budget_tz'].description}"
            ) from error
        return name

    @field_validator("events_keep_s")
    @classmethod
    def _outlast_a_repeated_call(cls, events_keep_s: float, info: ValidationInfo) -> float:
        store_retry_s = info.data.get("store_retry_s")
        if store_retry_s is not None and events_keep_s <= store_retry_s:
            raise ValueError(
                f"SWARM_EVENTS_KEEP_S ({events_keep_s:g}) must be longer than SWARM_STORE_RETRY_S ({store_retry_s:g}): "
                "a call that is repeated looks itself up in the log"
            )
        return events_keep_s

    @field_validator("dead_after_s")
    @classmethod
    def _outlast_a_heartbeat(cls, dead_after_s: float, info: ValidationInfo) -> float:
        heartbeat_s = info.data.get("heartbeat_s")  # missing if it is wrong itself, which is reported already
        if heartbeat_s is not None and dead_after_s <= heartbeat_s:
            raise ValueError(
                f"SWARM_DEAD_AFTER_S ({dead_after_s:g}) must be longer than SWARM_HEARTBEAT_S ({heartbeat_s:g})"
            )
        return dead_after_s


def masked_url(url: str) -> str:
    """*url* fit for a log or an error message: without user, password and query."""
    scheme, there, rest = url.partition("://")
    if not there:
        return "(no scheme)"  # it could be anything, a bare password included
    rest, asks, query = rest.partition("?")  # redis-py also takes ?password=
    # The last @, not the first: a password that nobody quoted may hold one itself, or a slash.
    login, _at, address = rest.rpartition("@")
    host = r"([^:/,]*|\[[^\]/]*\])(:\d*)?"
    group = rf"{host}(,{host})*(/[\w.-]+(/\d*)?)?" if "+" in scheme else rf"{host}(/\d*)?"
    plain = scheme == "unix" or re.fullmatch(group, address)
    if not plain or "@" in query:  # redis://:secret without its @host, redis://:sec?ret@host
        address = "***"
    return f"{scheme}://{'***@' if login else ''}{address}{'?***' if asks else ''}"


def runtime_dirs() -> list[Path]:
    """Where sockets may live, best first: ``XDG_RUNTIME_DIR`` if we can use it, the temporary folder, ``/tmp``."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    # It is often set without being there (WSL, sudo, containers), or belongs to the user that we were before su.
    usable = os.path.isabs(given) and os.path.isdir(given) and os.stat(given).st_uid == os.geteuid()
    own = [Path(given)] if usable and os.access(given, os.W_OK | os.X_OK) else []
    return [*own, Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - callers make a folder of their own in it


def _variable(name: str) -> str:
    field = Settings.model_fields.get(name)
    return str(field.validation_alias) if field else name


def _fault(detail: Any) -> str:
    """One line for one of pydantic's errors: the variable, what was found, what was needed."""
    if own := detail.get("ctx", {}).get("error"):  # a ValueError of the checks above, a full sentence already
        return str(own)
    variable = str(detail["loc"][0])
    name, field = next((name, field) for name, field in Settings.model_fields.items() if variable == _variable(name))
    secret = name in ("redis_url", "redis_password", "openai_api_key", "openai_base_url", "anthropic_api_key")
    found = "something else" if secret else repr(detail["input"])
    return f"{variable}: found {found[:120]}, needed {field.description or _description_within(field) or 'text'}"


def _description_within(field: Any) -> str | None:
    """The description of ``Seconds`` in a field of type ``Seconds | None``."""
    for part in getattr(field.annotation, "__args__", ()):
        for note in getattr(part, "__metadata__", ()):
            if getattr(note, "description", None):
                return str(note.description)
    return None


def _url_fault(url: str) -> str:
    """What is wrong with a Redis URL, or nothing."""
    found = f"found {masked_url(url)!r}"
    try:
        if server_group(url) is not None:
            return ""
    except ValueError as error:
        return f"{found}, {error}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text would quote the part after the colon, which may be half of a password
        return f"{found}, needed a port from 1 to 65535 (and %-codes for : / @ in a password)"
    if parts.scheme not in ("redis", "rediss", "unix"):
        return f"{found}, needed a URL that begins with {SCHEMES}"
    if parts.scheme == "unix":
        return "" if parts.path.strip("/") else f"{found}, needed the path of a socket"
    if not host:
        return f"{found}, needed a host"
    if port == 0:
        return f"{found}, needed a port from 1 to 65535"
    if not re.fullmatch(r"(/\d*)?", parts.path):
        return f"{found}, needed a number as the database after the slash (and %-codes for : / @ in a password)"
    return ""
