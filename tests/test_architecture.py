"""The house: which room may import which, and what is private to a room."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BELOW = {  # what each room may import, directly
    "functional": set(),
    "sharding": set(),
    "neurons": {"functional", "sharding"},
    "updates": {"functional", "neurons", "sharding"},
    "plots": {"functional"},
    "metrics": {"functional"},
    "finder": {"functional", "neurons", "plots", "sharding", "updates"},
    "clipping": {"functional", "neurons", "sharding", "updates"},
    "control": {"functional", "neurons", "sharding", "updates"},
    "verdict": {"functional", "plots"},
    "callbacks": {"clipping", "control", "finder", "functional", "neurons", "plots", "sharding", "updates", "verdict"},
}


def rooms():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rooms_import_what_they_may():
    found = rooms().imports()
    strange = {room: others - BELOW.get(room, set()) for room, others in found.items()}
    assert {room: others for room, others in strange.items() if others} == {}


def test_nothing_imports_a_private_module_of_another_room():
    package, imported = ROOT / "lightning_topo", rooms().imported
    strange = [
        f"{path.relative_to(package)} imports {room}.{'.'.join(below)}"
        for path in package.rglob("*.py")
        for room, below in imported(path)
        if any(part.startswith("_") for part in below) and path.relative_to(package).parts[0] != room
    ]
    assert strange == []


def test_mathematics_imports_no_lightning():
    package = ROOT / "lightning_topo"
    knowing = [
        str(path.relative_to(package))
        for room in ("functional", "metrics", "plots", "updates", "clipping", "control")
        for path in (package / room).rglob("*.py")
        if re.search(r"^\s*(from|import) (pytorch_)?lightning\b", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert knowing == []


def test_picture_has_each_room_and_the_direct_arrows():
    module = rooms()
    arrows = {"top": {"middle", "low"}, "middle": {"low"}, "low": set()}
    assert module.direct(arrows) == {"top": {"middle"}, "middle": {"low"}, "low": set()}
    assert module.layers(arrows) == [["top"], ["middle"], ["low"]]
    picture = module.svg()
    assert all(f">{room}</text>" in picture for room in module.imports())
