"""Settings: names, defaults, rules, and messages that a person can act on without a look at the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swarm_infrastructure.config import Settings, masked_url, runtime_dirs
from swarm_infrastructure.errors import ConfigurationError

VARIABLES = [str(field.validation_alias) for field in Settings.model_fields.values()]


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def fault_of(**overrides: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(**overrides)
    return str(caught.value)


def test_without_any_setting_the_defaults_of_the_docs_hold():
    settings = Settings.load()

    assert settings.model_dump() == {
        "redis_url": None,
        "redis_host": None,
        "redis_port": 6379,
        "redis_password": None,
        "redis_tls": False,
        "redis_server": None,
        "namespace": "default",
        "data_dir": Path(".swarm"),
        "store_timeout_s": 5,
        "store_retry_s": 20,
        "durability": None,
        "replicas": 1,
        "lease_s": None,
        "heartbeat_s": 10,
        "dead_after_s": 45,
        "events_keep": 200_000,
        "events_keep_s": 300,
        "ledger_keep": 500_000,
        "ledger_keep_days": 40,
        "shutdown_grace_s": 25,
        "openai_api_key": None,
        "openai_base_url": None,
        "anthropic_api_key": None,
        "tier_fast": None,
        "tier_balanced": None,
        "tier_premium": None,
        "prices_path": None,
        "unknown_price": None,
        "budget_tz": "UTC",
        "global_daily_budget": None,
        "enable_cost_alerts": True,
        "default_max_retries": 3,
        "circuit_breaker_threshold": 5,
        "llm_timeout_s": 120,
        "llm_requests_per_minute": None,
        "llm_tokens_per_minute": None,
        "log_level": "INFO",
        "log_format": "auto",
    }


def test_every_setting_is_read_from_the_variable_that_the_docs_name(monkeypatch):
    given = {
        "REDIS_URL": "redis://db:1234/2",
        "REDIS_HOST": "cache.example",
        "REDIS_PORT": "7000",
        "REDIS_PASSWORD": "hush",
        "REDIS_TLS": "1",
        "SWARM_REDIS_SERVER": "/opt/valkey-server",
        "SWARM_ID": "news.eu-1",
        "SWARM_DATA_DIR": "/var/lib/swarm",
        "SWARM_STORE_TIMEOUT_S": "2.5",
        "SWARM_STORE_RETRY_S": "0",
        "SWARM_DURABILITY": "replica",
        "SWARM_REPLICAS": "2",
        "SWARM_LEASE_S": "60",
        "SWARM_HEARTBEAT_S": "3",
        "SWARM_DEAD_AFTER_S": "9",
        "SWARM_EVENTS_KEEP": "0",
        "SWARM_EVENTS_KEEP_S": "60",
        "SWARM_LEDGER_KEEP": "1000",
        "SWARM_LEDGER_KEEP_DAYS": "365",
        "SWARM_SHUTDOWN_GRACE_S": "0",
        "OPENAI_API_KEY": "sk-1",
        "OPENAI_BASE_URL": "http://localhost:8000/v1",
        "ANTHROPIC_API_KEY": "sk-2",
        "SWARM_TIER_FAST": "a, b",
        "SWARM_TIER_BALANCED": "c",
        "SWARM_TIER_PREMIUM": "d",
        "SWARM_PRICES": "/etc/prices.toml",
        "SWARM_UNKNOWN_PRICE": "75",
        "SWARM_BUDGET_TZ": "Europe/Berlin",
        "GLOBAL_DAILY_BUDGET": "12.5",
        "ENABLE_COST_ALERTS": "0",
        "DEFAULT_MAX_RETRIES": "7",
        "CIRCUIT_BREAKER_THRESHOLD": "9",
        "SWARM_LLM_TIMEOUT_S": "30",
        "SWARM_LLM_RPM": "100",
        "SWARM_LLM_TPM": "90000",
        "SWARM_LOG_LEVEL": "DEBUG",
        "SWARM_LOG_FORMAT": "json",
    }
    assert sorted(given) == sorted(VARIABLES)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)

    settings = Settings.load()

    assert settings.redis_url_from_env() == "redis://db:1234/2"
    assert (settings.redis_host, settings.redis_port, settings.redis_tls) == ("cache.example", 7000, True)
    assert settings.redis_server == Path("/opt/valkey-server")
    assert (settings.namespace, settings.data_dir) == ("news.eu-1", Path("/var/lib/swarm"))
    assert (settings.store_timeout_s, settings.store_retry_s) == (2.5, 0)
    assert (settings.durability, settings.replicas) == ("replica", 2)
    assert (settings.lease_s, settings.heartbeat_s, settings.dead_after_s, settings.shutdown_grace_s) == (60, 3, 9, 0)
    assert (settings.events_keep, settings.events_keep_s) == (0, 60)
    assert (settings.ledger_keep, settings.ledger_keep_days) == (1000, 365)
    assert settings.tier_models == {"fast": ["a", "b"], "balanced": ["c"], "premium": ["d"]}
    assert (settings.openai_is_configured, settings.anthropic_is_configured) == (True, True)
    assert settings.unknown_price == 75
    assert (settings.prices_path, settings.budget_tz) == (Path("/etc/prices.toml"), "Europe/Berlin")
    assert (settings.global_daily_budget, settings.enable_cost_alerts) == (12.5, False)
    assert (settings.default_max_retries, settings.circuit_breaker_threshold) == (7, 9)
    assert (settings.llm_timeout_s, settings.llm_requests_per_minute, settings.llm_tokens_per_minute) == (
        30,
        100,
        90000,
    )
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")


def test_settings_can_be_given_by_field_name_and_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("SWARM_ID", "from_environment")

    assert Settings(namespace="x").namespace == "x"
    assert Settings.load(namespace="x", lease_s=2).lease_s == 2
    assert Settings.load().namespace == "from_environment"


def test_a_variable_named_like_a_field_is_not_ours(monkeypatch):
    for field in Settings.model_fields:
        if field.upper() not in VARIABLES:
            monkeypatch.setenv(field.upper(), "not for us")

    assert Settings.load().namespace == "default"


def test_a_dotenv_file_in_the_working_folder_is_read_and_the_environment_wins_over_it(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("SWARM_ID=from_file\nSWARM_HEARTBEAT_S=3\nOTHER_PROGRAMS_KEY=1\nREDIS_URL=\n")
    monkeypatch.setenv("SWARM_HEARTBEAT_S", "4")

    settings = Settings.load()

    assert (settings.namespace, settings.heartbeat_s, settings.redis_url) == ("from_file", 4, None)


def test_a_dotenv_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / ".env").write_bytes(b"SWARM_ID=\xff\xfe\n")

    assert ".env: found" in fault_of()


def test_settings_can_not_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().namespace = "other"


def test_all_faults_are_named_at_once_with_what_was_found_and_what_was_needed(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "http://db")
    monkeypatch.setenv("REDIS_HOST", "redis://db")
    monkeypatch.setenv("REDIS_PORT", "many")
    monkeypatch.setenv("REDIS_TLS", "perhaps")
    monkeypatch.setenv("SWARM_ID", "a b")
    monkeypatch.setenv("SWARM_LEASE_S", "-1")
    monkeypatch.setenv("SWARM_STORE_TIMEOUT_S", "nan")
    monkeypatch.setenv("SWARM_HEARTBEAT_S", "10")
    monkeypatch.setenv("SWARM_DEAD_AFTER_S", "5")
    monkeypatch.setenv("SWARM_LOG_LEVEL", "loud")
    monkeypatch.setenv("SWARM_LOG_FORMAT", "xml")

    lines = sorted(line.removeprefix("  - ") for line in fault_of().splitlines()[1:])

    assert lines == [
        "REDIS_HOST: found 'redis://db', needed a host name or address, no URL",
        "REDIS_PORT: found 'many', needed a port, a number from 1 to 65535",
        "REDIS_TLS: found 'perhaps', needed 1 or 0 (true or false)",
        "REDIS_URL: found 'http://db', needed a URL that begins with redis://, rediss:// or unix://, "
        "redis+sentinel:// or redis+cluster://, "
        "such as redis://localhost:6379/0 or unix:///run/redis.sock",
        "SWARM_DEAD_AFTER_S (5) must be longer than SWARM_HEARTBEAT_S (10)",
        "SWARM_ID: found 'a b', needed 1 to 64 of the characters A-Z a-z 0-9 _ . -",
        "SWARM_LEASE_S: found '-1', needed seconds, a number greater than 0",
        "SWARM_LOG_FORMAT: found 'xml', needed auto, json or console",
        "SWARM_LOG_LEVEL: found 'loud', needed DEBUG, INFO, WARNING, ERROR or CRITICAL",
        "SWARM_STORE_TIMEOUT_S: found 'nan', needed seconds, a number greater than 0",
    ]


def test_a_default_is_checked_against_what_was_given():
    assert "SWARM_DEAD_AFTER_S (45) must be longer than SWARM_HEARTBEAT_S (60)" in fault_of(heartbeat_s=60)


def test_a_setting_that_does_not_exist_is_refused_in_code():
    assert "namespaces: found no such setting" in fault_of(namespaces="x")


@pytest.mark.parametrize("name", ["", "a" * 65, "a/b", "{a}", "a:b", "ä", "a\n"])
def test_a_namespace_that_could_break_a_key_is_refused(name):
    assert "SWARM_ID: found" in fault_of(namespace=name)


@pytest.mark.parametrize("name", ["a", "a" * 64, "News_v2.eu-west"])
def test_a_plain_namespace_is_accepted(name):
    assert Settings.load(namespace=name).namespace == name


@pytest.mark.parametrize("level", ["debug", "Debug", "DEBUG"])
def test_a_log_level_may_be_written_in_any_case(level):
    assert Settings.load(log_level=level).log_level == "DEBUG"


def test_a_tilde_means_the_home_folder():
    assert Settings.load(data_dir="~/swarm").data_dir == Path.home() / "swarm"


# -- the Redis that the user named ------------------------------------------------------------------------------------


def test_without_a_url_or_host_there_is_no_redis_of_the_user(monkeypatch):
    monkeypatch.setenv("REDIS_PORT", "7000")

    assert Settings.load().redis_url_from_env() is None


def test_a_url_is_made_from_host_port_password_and_tls(monkeypatch):
    assert Settings.load(redis_host="db").redis_url_from_env() == "redis://db:6379"

    monkeypatch.setenv("REDIS_HOST", "db")
    monkeypatch.setenv("REDIS_PORT", "7000")
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss/w:rd")
    monkeypatch.setenv("REDIS_TLS", "true")

    assert Settings.load().redis_url_from_env() == "rediss://:p%40ss%2Fw%3Ard@db:7000"


def test_an_address_of_version_6_is_put_in_brackets():
    assert Settings.load(redis_host="::1").redis_url_from_env() == "redis://[::1]:6379"


def test_the_port_variable_that_kubernetes_sets_for_a_service_called_redis_is_understood(monkeypatch):
    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.7:6380")

    assert Settings.load().redis_port == 6380


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6379/0",
        "rediss://user:word@db.example:6380/3",
        "redis://[::1]:6379",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_a_good_url_is_taken_as_it_is(url):
    assert Settings.load(redis_url=url).redis_url_from_env() == url


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        ("localhost:6379", "begins with redis://"),
        ("http://db", "begins with redis://"),
        ("redis://", "needed a host"),
        ("redis:///0", "needed a host"),
        ("redis://:6379", "needed a host"),
        ("redis://db:port", "needed a port"),
        ("redis://db:0", "needed a port"),
        ("redis://db:70000", "needed a port"),
        ("redis://[::1", "needed a port"),
        ("redis://db/first", "needed a number as the database"),
        ("unix://", "needed the path of a socket"),
        ("unix:///", "needed the path of a socket"),
    ],
)
def test_a_malformed_url_is_refused_with_what_it_needs(url, needed):
    message = fault_of(redis_url=url)

    assert "REDIS_URL: found" in message
    assert needed in message


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush@db:port",
        "redis://:hush",
        "redis://user:hu/sh@db",
        "redis://:hu@hush@db/x",
        "redis://:hush?hush@db:x",
        "redis://db/x?password=hush",
        "redis://db/x?password=a@hush",
        "hush",
        "http://user:hush@db",
    ],
)
def test_a_password_is_never_part_of_an_error_message(url):
    message = fault_of(redis_url=url, redis_password="hush", redis_port="x")

    assert "hush" not in message
    assert "hush" not in masked_url(url)
    assert "sh@" not in message


def test_a_password_is_never_part_of_what_is_printed():
    settings = Settings.load(redis_url="redis://:hush@db", redis_password="hush")

    assert "hush" not in repr(settings) + str(settings) + str(settings.model_dump())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"durability": "replica"}, "SWARM_DURABILITY (replica) needs a Redis that has replicas"),
        ({"durability": "local", "replicas": 2}, "SWARM_REPLICAS (2) counts only with SWARM_DURABILITY=replica"),
        ({"replicas": 3}, "SWARM_REPLICAS (3) counts only with SWARM_DURABILITY=replica"),
        (
            {"redis_url": "redis://db", "durability": "replica", "replicas": 0},
            "SWARM_REPLICAS: found 0, needed a whole",
        ),
        ({"durability": "always"}, "SWARM_DURABILITY: found 'always', needed local or replica"),
    ],
)
def test_a_durability_that_can_not_be_kept_is_named(given, said):
    assert said in fault_of(**given)


@pytest.mark.parametrize("word", ["local", "LOCAL"])
def test_the_private_server_keeps_what_local_asks_for(word):
    assert Settings.load(durability=word).durability == "local"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis+sentinel://me:hush@a:1,b:2/main/3", "redis+sentinel://***@a:1,b:2/main/3"),
        ("redis+sentinel://a,[::1]:2/my.master-1", "redis+sentinel://a,[::1]:2/my.master-1"),
        ("rediss+cluster://:hush@a:1,b:2", "rediss+cluster://***@a:1,b:2"),
        ("redis+sentinel://a/main?sentinel_password=hush", "redis+sentinel://a/main?***"),
    ],
)
def test_several_servers_can_be_named_by_one_url(url, masked):
    assert Settings.load(redis_url=url).redis_url_from_env() == url
    assert masked_url(url) == masked


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        ("redis+sentinel://a:1,b:2", "the master's name after the hosts"),
        ("redis+sentinel://a:1/main/x", "a number as the database"),
        ("redis+sentinel://a:1:2/main", "host or host:port"),
        ("redis+cluster://a:1,,b:2", "host or host:port"),
        ("redis+cluster://a:70000", "a port from 1 to 65535"),
        ("redis+cluster://a/3", "no database"),
        ("redis+cluster://hu@sh@a", "%-codes"),
    ],
)
def test_a_url_of_several_servers_that_is_none_is_named(url, needed):
    assert needed in fault_of(redis_url=url)


def test_a_masked_url_still_says_which_server_it_is():
    assert masked_url("rediss://user:word@db.example:6380/3") == "rediss://***@db.example:6380/3"
    assert masked_url("redis://db:6379") == "redis://db:6379"
    assert masked_url("unix:///run/redis.sock?db=1") == "unix:///run/redis.sock?***"


# -- where sockets may live -------------------------------------------------------------------------------------------


def test_a_runtime_folder_of_the_user_is_the_first_choice_for_sockets(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    assert runtime_dirs()[0] == tmp_path


@pytest.mark.parametrize("value", ["", "relative", "/does/not/exist"])
def test_a_runtime_folder_that_can_not_be_used_is_passed_over(monkeypatch, value):
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)

    assert Path(value) not in runtime_dirs()
    assert runtime_dirs()[-1] == Path("/tmp")


def test_importing_the_settings_loads_no_client():
    code = (
        "import swarm_infrastructure, sys; before = set(sys.modules); import swarm_infrastructure.config; "
        "print({'redis', 'structlog', 'typer', 'rich'} & (set(sys.modules) - before))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_events_stay_for_longer_than_a_call_is_repeated():
    with pytest.raises(ConfigurationError) as raised:
        Settings.load(store_retry_s=300)
    assert "SWARM_EVENTS_KEEP_S (300) must be longer than SWARM_STORE_RETRY_S (300)" in str(raised.value)
    assert Settings.load(store_retry_s=300, events_keep_s=301).events_keep_s == 301


@pytest.mark.parametrize(
    ("variable", "value"), [("SWARM_EVENTS_KEEP", "-1"), ("SWARM_LEDGER_KEEP", "many"), ("SWARM_LEDGER_KEEP_DAYS", "0")]
)
def test_what_is_kept_is_a_number_that_makes_sense(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable}: found '{value}', needed"):
        Settings.load()
