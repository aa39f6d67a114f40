"""The shape of the code: imports run downwards only, and nothing grows past its size.

cli → demo, project → reproduce, faces → people_mini → training, attach, bench → run_page, calibration → doctor →
evaluation → prepare → records, planning, page → data → engine → decode, preset, conditions → perceptual, plugins →
errors
hooks → the public names of mldm_plugin, errors, perceptual and the names of conditions, never each other
"""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("mldm_plugin", "hooks", "presets") for p in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted([*ROOT.glob("*.py"), *(ROOT / "docs").rglob("*.py")])

# Lowest first; a module imports from layers below its own, and from its own package.
LAYERS = (
    {"errors", "announce", "parser", "stopping", "threads", "requirements"},
    {"hookspecs"},
    {"perceptual", "plugins"},
    {"decode", "preset", "preset_flags", "conditions"},
    {"engine", "weights_first"},
    {"data"},
    {"records", "planning", "page"},
    {"prepare"},
    {"evaluation"},
    {"doctor"},
    {"run_page", "calibration"},
    {"training", "attach", "bench"},
    {"people_mini"},
    {"reproduce", "faces"},
    {"demo", "project"},
    {"cli", "__main__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HOOKS_MAY_IMPORT = {"", "errors", "perceptual", "conditions"}
# What is installed with the plugin but must not reach the modules that know torch only.
FRAMEWORKS = {"pluggy", "yaml", "pydantic", "click", "diffusers", "transformers", "accelerate", "datasets"}
TORCH_ONLY = {"perceptual", "engine.schedule", "engine.step"}
# Its networks are transformers' own, imported inside the function that is asked for one.
FRAMEWORK_INSIDE = {"mldm_plugin.perceptual.vision_transformers"}
# What a hook is called with is made far above the list of hooks.
TYPED_FROM_BELOW = {"mldm_plugin.hookspecs"}
TESTED_BY_PUBLIC_NAMES = {"engine", "decode", "training", "bench", "planning"}
MODULE_LINES, LOSS_LINES, FUNCTION_LINES, STEP_LINES = 400, 150, 40, 15


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "mldm_plugin":  # hooks/ and presets/ are installed inside the package
        parts = ("mldm_plugin", *parts)
    return ".".join(parts).removesuffix(".__init__")


def of_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


@functools.cache
def imports(path, functions_too=True, types_too=False):
    """The modules that a file imports at run time, in full; names that a from-import takes are added to them.

    `types_too` adds those that a type checker alone sees.
    """

    def visit(node):
        if of_type_checking(node) and not types_too:
            return
        if not functions_too and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            known = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from known or {node.module}
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return frozenset(visit(parse(path)))


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {module_name(path): path for path in SOURCES}


def layer(module):
    """`mldm_plugin.training.run` → `training`; the package itself → the empty string."""
    return f"{module}.".split(".")[1]


def own(names):
    return {name for name in names if name.split(".")[0] == "mldm_plugin"}


def test_every_module_has_a_layer():
    assert {layer(m) for m in MODULES} - {"", "hooks", "presets"} <= RANK.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) in RANK])
def test_imports_run_downwards(module):
    above = {
        target
        for target in own(imports(MODULES[module], types_too=module not in TYPED_FROM_BELOW))
        if layer(target) not in ("", layer(module)) and RANK.get(layer(target), 99) >= RANK[layer(module)]
    }
    assert not above, f"{module} is not above {above}"


def test_only_what_stands_above_the_engine_uses_its_public_names():
    """The package's lazy names reach up to the stack, so nothing at or below the stack takes them."""
    users = {m for m, path in MODULES.items() if "mldm_plugin" in imports(path) and layer(m) in RANK}
    low = {m for m in users if RANK[layer(m)] <= RANK["engine"]}
    assert not low, f"{low} take names that reach above them"


@pytest.mark.parametrize("module", [m for m in MODULES if layer(m) == "hooks"])
def test_a_hook_knows_public_names_and_perceptual_alone(module):
    assert {layer(target) for target in own(imports(MODULES[module]))} <= HOOKS_MAY_IMPORT


@pytest.mark.parametrize("module", [m for m in MODULES if m.split(".", 1)[-1].startswith(tuple(TORCH_ONLY))])
def test_the_mathematics_knows_torch_only(module):
    known = imports(MODULES[module], functions_too=module not in FRAMEWORK_INSIDE)
    assert not {name.split(".")[0] for name in known} & FRAMEWORKS


def test_nothing_imports_hooks_by_name():
    for path in (*SOURCES, *SCRIPTS, *(ROOT / "tests").glob("*.py")):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not {"hooks", "presets"} & tops, path
    for path in SOURCES:
        assert not {t for t in own(imports(path)) if layer(t) == "hooks"}, path


def test_no_imports_in_circles():
    graph = {m: own(imports(path)) - {m} for m, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_presets_plugins_and_flags_need_no_torch():
    program = (
        "import sys, mldm_plugin.preset, mldm_plugin.plugins, mldm_plugin.training.command_line\n"
        "mldm_plugin.preset.load_preset('mldm')\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_outgrows_its_size(path):
    limit = LOSS_LINES if path.parent.name == "hooks" else MODULE_LINES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit, f"{lines} lines: split it by noun"
    long = {
        f"{node.name}: {length}"
        for node in ast.walk(parse(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (length := code_lines(node)) > FUNCTION_LINES
    }
    assert not long, f"functions of more than {FUNCTION_LINES} lines: {long}"


def test_a_step_is_read_on_one_screen():
    (stack,) = [n for n in ast.walk(parse(MODULES["mldm_plugin.engine.stack"])) if isinstance(n, ast.ClassDef)]
    (call,) = [n for n in stack.body if isinstance(n, ast.FunctionDef) and n.name == "__call__"]
    assert code_lines(call) - 1 <= STEP_LINES, "without its signature"


def test_tests_do_not_import_from_one_another():
    for path in (ROOT / "tests").rglob("*.py"):
        borrowed = {name for name in imports(path) if name.startswith("test_")}
        assert not borrowed, f"{path.name} takes from {borrowed}: what tests share stands in a module of its own"


def named(tree, stored):
    """The names of a module: that it defines, or else that it takes of others, by a path in a string, too."""
    for node in ast.walk(tree):
        if stored and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        if stored and isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        if stored:
            continue
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            yield node.attr
        if isinstance(node, ast.alias):
            yield node.name
        if isinstance(node, ast.Constant) and str(node.value).startswith("mldm_plugin."):
            yield node.value.split(".")[-1]


def test_tests_go_through_public_names():
    modules = [path for m, path in MODULES.items() if layer(m) in TESTED_BY_PUBLIC_NAMES]
    own = {n for path in modules for n in named(parse(path), stored=True) if n.startswith("_") and n.strip("_")}
    own = {name for name in own if not name.startswith("__")}
    assert "_look_up" in own
    for path in (ROOT / "tests").rglob("*.py"):
        taken = own.intersection(named(parse(path), stored=False)) if path != Path(__file__) else set()
        assert not taken, f"{path.name} takes {taken}: test what can be seen from outside"


def code_lines(function):
    """Lines of a function without its docstring, which holds formulas and shapes."""
    docstring = function.body[0] if ast.get_docstring(function, clean=False) is not None else None
    told = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return function.end_lineno - function.lineno + 1 - told
