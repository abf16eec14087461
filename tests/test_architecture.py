"""The directions of import, as the layout promises them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("attention", "pipeline", "trainer", "cluster", "demo", "reproduce")
MAY_IMPORT = {
    "attention": {"attention"},
    "pipeline": {"pipeline"},
    "trainer": {"trainer", "attention", "pipeline"},
    "cluster": {"cluster", "pipeline", "trainer"},
    # Users of the rest, which nothing else may lean on. What they share lies in demo: making text, running commands.
    "demo": {"demo", "attention", "pipeline", "trainer"},
    "reproduce": {"reproduce", "demo", "attention", "pipeline", "trainer"},
}
TRAINER_MAY_TAKE_OF_PIPELINE = {
    "pipeline.shards",
    "pipeline.tokenizer",
    "pipeline.fetch",
    # A corpus may lie where storage reaches, and says with these errors why it does not.
    "pipeline.storage",
    "pipeline.storage.cache",
    "pipeline.errors",
}
IMPORTED_IN = {
    "ray": {
        "pipeline/runner.py",
        *(f"cluster/{name}.py" for name in ("check", "machines", "node", "progress")),
    },
    "deepspeed": {"trainer/engine/deepspeed.py"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_they_may(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for module in imports(path):
            top = module.split(".")[0]
            assert top not in PACKAGES or top in MAY_IMPORT[package], f"{path} imports {module}"
            if package == "trainer" and top == "pipeline":
                assert module in TRAINER_MAY_TAKE_OF_PIPELINE, f"{path} imports {module}"
            if top in IMPORTED_IN:
                assert str(path.relative_to(ROOT)) in IMPORTED_IN[top], f"{path} imports {module}"
