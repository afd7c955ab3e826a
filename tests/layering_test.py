"""The house rules that a program can check: who imports whom, and how long things get.

    passes ---> memory_planner ---> autoshard ---> experiments <--- models
       |                                ^               ^
       +--------------------------------+---------------+

An arrow runs from what is imported to who may import it; of passes, memory_planner may see only
passes.hlo. Every file of the tree is checked, so that a new one is covered as soon as it is there.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# package -> the dotted prefixes of ours that it may import, besides itself.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "models": (),
    "passes": (),
    "memory_planner": ("passes.hlo",),
    "autoshard": ("passes", "memory_planner"),
    "experiments": ("models", "passes", "memory_planner", "autoshard"),
    "benchmarks": ("models", "passes", "memory_planner", "autoshard", "experiments"),
    "tests": ("models", "passes", "memory_planner", "autoshard", "experiments", "benchmarks"),
}

# A prefix of JAX that is not its stable surface -> the files and folders that may use it.
CONFINED: dict[str, tuple[str, ...]] = {
    "jax._src": (),
    "jax.extend": ("passes/ir.py", "autoshard/aot.py"),
    "jax.experimental": ("passes/ir.py", "autoshard/aot.py"),
    "jax.experimental.pallas": (
        "passes/kernels/",
        "tests/passes/kernels/",
        "benchmarks/published_model.py",  # the attention kernel that the published runs used
    ),
}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
ANY_FUNCTION_LENGTH = ("passes/kernels/", "tests/")

UTIL_NAME = re.compile(r"(.*_)?util(s|ity|ities)?(_.*)?")


@dataclasses.dataclass(frozen=True)
class Violation:
    """One breach of a rule, in a line that an editor can jump to."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


def python_files(root: Path) -> list[str]:
    """Paths, relative to `root`, of every Python file of the packages."""
    return sorted(
        path.relative_to(root).as_posix()
        for name in MAY_IMPORT
        for path in (root / name).rglob("*.py")
    )


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _import_bindings(node: ast.Import | ast.ImportFrom, path: str) -> Iterator[tuple[str, str]]:
    """Yields (name bound in the file, dotted name that it stands for) of an import.

    `from a import b` is `a.b`: whether b is a module or a member makes no difference to a prefix.
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            first = alias.name.split(".")[0]
            yield (alias.asname or first), alias.name
    else:
        folders = Path(path).parts[:-1]
        package = folders[: len(folders) - node.level + 1] if node.level else ()
        base = ".".join([*package, *([node.module] if node.module else [])])
        for alias in node.names:
            yield (alias.asname or alias.name), f"{base}.{alias.name}"


def _dotted(node: ast.AST) -> str | None:
    """`a.b.c` for such a chain of attributes, else None."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(names)])


def _literal_import(node: ast.Call) -> str | None:
    """The module that `import_module("a.b")`, `__import__` or `importorskip` names in a literal."""
    if not (node.args and isinstance(node.args[0], ast.Constant)):
        return None
    function = (_dotted(node.func) or "").split(".")[-1]
    known = function in ("import_module", "__import__", "importorskip")
    return str(node.args[0].value) if known else None


def used_modules(tree: ast.Module, path: str) -> list[tuple[str, int]]:
    """Every (dotted name, line) that a file imports or reaches through an imported name."""
    used: list[tuple[str, int]] = []
    stands_for: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for bound, name in _import_bindings(node, path):
                used.append((name, node.lineno))
                is_plain = isinstance(node, ast.Import) and bound == name.split(".")[0]
                stands_for[bound] = bound if is_plain else name
        elif isinstance(node, ast.Call) and (literal := _literal_import(node)):
            used.append((literal, node.lineno))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (chain := _dotted(node)):
            first, *rest = chain.split(".")
            if first in stands_for:
                used.append((".".join([stands_for[first], *rest]), node.lineno))
    return used


def check_imports(path: str, tree: ast.Module) -> Iterator[Violation]:
    """Who may import whom, and where JAX's unstable parts may be used."""
    package = path.split("/")[0]
    allowed = (*MAY_IMPORT[package], package)
    found: dict[Violation, None] = {}
    for name, line in used_modules(tree, path):
        if name.split(".")[0] in MAY_IMPORT and not any(_under(name, other) for other in allowed):
            knows = ", ".join(MAY_IMPORT[package]) or "no package of ours"
            found[Violation(path, line, f"{package} imports {name}, but may know {knows}")] = None
        confined = max((prefix for prefix in CONFINED if _under(name, prefix)), key=len, default="")
        if confined and not path.startswith(CONFINED[confined]):
            places = ", ".join(CONFINED[confined]) or "JAX itself"
            found[Violation(path, line, f"uses {confined}, which is only for {places}")] = None
    yield from found


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` on, docstring left out."""
    assert function.end_lineno is not None
    count = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        count -= docstring.end_lineno - docstring.lineno + 1
    return count


def check_lengths(path: str, source: str, tree: ast.Module) -> Iterator[Violation]:
    """Files up to 500 lines; functions up to 60, but for kernels and tests."""
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES:
        yield Violation(path, lines, f"{lines} lines; split it below {MAX_FILE_LINES}")
    if path.startswith(ANY_FUNCTION_LENGTH):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = code_lines(node)
            if count > MAX_FUNCTION_LINES:
                message = f"{node.name} has {count} lines of code, at most {MAX_FUNCTION_LINES}"
                yield Violation(path, node.lineno, message)


def check_name(path: str) -> Iterator[Violation]:
    """No file or folder that could hold anything."""
    for part in Path(path).with_suffix("").parts:
        if UTIL_NAME.fullmatch(part):
            yield Violation(path, 1, f"{part}: name it after what it does")


def check_file(root: Path, path: str) -> list[Violation]:
    """Everything that is wrong with one file."""
    source = (root / path).read_text(encoding="utf-8")
    tree = ast.parse(source, filename=path)
    return [
        *check_imports(path, tree),
        *check_lengths(path, source, tree),
        *check_name(path),
    ]


def check_build_files(root: Path) -> list[Violation]:
    """A BUILD beside every package, and beside every folder of tests; none that hides sources.

    A package's BUILD globs its subpackages, too, since those import one another; a BUILD of their
    own would take them out of that glob.
    """
    violations = []
    for folder in sorted({Path(path).parent for path in python_files(root)}):
        wanted = folder.parts[0] == "tests" or len(folder.parts) == 1
        if wanted and not (root / folder / "BUILD").is_file():
            violations.append(Violation(f"{folder}/BUILD", 1, "missing; see a neighbour's"))
        if not wanted and (root / folder / "BUILD").is_file():
            message = f"hides these files from the glob of {folder.parts[0]}/BUILD"
            violations.append(Violation(f"{folder}/BUILD", 1, message))
    return violations


def _report(violations: list[Violation]) -> str:
    return "\n".join(["", *map(str, violations)])


@pytest.mark.parametrize("path", python_files(ROOT))
def test_file_keeps_the_rules(path: str) -> None:
    violations = check_file(ROOT, path)
    assert not violations, _report(violations)


def test_build_files_are_in_place() -> None:
    violations = check_build_files(ROOT)
    assert not violations, _report(violations)


def test_every_package_of_the_tree_has_a_place_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(MAY_IMPORT)


LONG_FUNCTION = "def f(x):\n" + "    x += 1\n" * 60


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("models/a.py", "import autoshard", "models imports autoshard"),
        ("models/a.py", "def f():\n    from passes import ir", "models imports passes.ir"),
        ("passes/a.py", "from models.registry import get", "passes imports models.registry.get"),
        ("passes/hlo/a.py", "import memory_planner.game", "passes imports memory_planner.game"),
        ("passes/a.py", "from autoshard import *", "passes imports autoshard.*"),
        ("memory_planner/a.py", "from passes import ir", "memory_planner imports passes.ir"),
        ("memory_planner/a.py", "import passes", "memory_planner imports passes, but"),
        ("autoshard/a.py", "import models.gpt2 as g", "autoshard imports models.gpt2"),
        ("autoshard/a.py", "from experiments import train", "autoshard imports experiments.train"),
        ("autoshard/a/b.py", "from ...models import gpt2", "autoshard imports models.gpt2"),
        ("autoshard/a.py", "import importlib\nimportlib.import_module('models')", "models"),
        ("experiments/a.py", "from tests import conftest", "experiments imports tests.conftest"),
        ("models/a.py", "from jax._src import core", "uses jax._src"),
        ("passes/ir.py", "import jax._src.core", "uses jax._src"),
        ("tests/a_test.py", "import jax\n\njax._src.core.x()", "a_test.py:3: uses jax._src"),
        (
            "autoshard/a.py",
            "import jax as j\nj.experimental.io_callback()",
            "uses jax.experimental",
        ),
        ("autoshard/a.py", "from jax import extend\n", "uses jax.extend"),
        ("autoshard/a.py", "from jax.experimental import pallas", "uses jax.experimental.pallas"),
        (
            "passes/kernels/a.py",
            "from jax.experimental import io_callback",
            "uses jax.experimental",
        ),
        ("passes/a.py", LONG_FUNCTION, "f has 61 lines"),
        ("models/a.py", "x = 1\n" * 501, "501 lines"),
        ("tests/a_test.py", "x = 1\n" * 501, "501 lines"),
        ("autoshard/utils.py", "", "utils: name it"),
        ("autoshard/tree_util.py", "", "tree_util: name it"),
        ("autoshard/util/tree.py", "", "util: name it"),
    ],
)
def test_checker_finds(tmp_path: Path, path: str, source: str, message: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source)
    report = _report(check_file(tmp_path, path))
    assert message in report and report.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("memory_planner/a.py", "from passes.hlo import parse\nfrom passes import hlo"),
        ("memory_planner/a.py", "import passes.hlo.schedule as s\ns.x"),
        ("autoshard/a.py", "import memory_planner.game\nfrom passes import ir\nfrom . import plan"),
        ("autoshard/rules/a.py", "from ..plan import Plan\nfrom autoshard import graph"),
        ("experiments/a.py", "import autoshard, models, passes, memory_planner"),
        ("passes/ir.py", "from jax.extend import core\nimport jax.experimental.x"),
        ("autoshard/aot.py", "from jax.experimental import topologies"),
        ("passes/kernels/a.py", "from jax.experimental import pallas as pl\n" + LONG_FUNCTION),
        ("tests/a_test.py", "import models, experiments\n" + LONG_FUNCTION),
        ("models/a.py", "import modelsoup\nmodels = 3\npasses = models\nself.models.x"),
        ("models/a.py", f'def f(x):\n    """{"a" + chr(10) * 70}"""\n    return x'),
        ("autoshard/utilization.py", ""),
    ],
)
def test_checker_lets_pass(tmp_path: Path, path: str, source: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source)
    assert not check_file(tmp_path, path)


def test_checker_finds_missing_and_hiding_build_files(tmp_path: Path) -> None:
    for path in ("models/a.py", "autoshard/rules/a.py", "autoshard/a.py", "tests/models/a_test.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "autoshard/BUILD").touch()
    (tmp_path / "autoshard/rules/BUILD").touch()
    paths = {violation.path for violation in check_build_files(tmp_path)}
    assert paths == {"models/BUILD", "autoshard/rules/BUILD", "tests/models/BUILD"}
