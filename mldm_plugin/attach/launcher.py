"""Run a training script as Python would, with our calls spliced into it."""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

from mldm_plugin import attach
from mldm_plugin.attach import by_frame, kohya, trainers
from mldm_plugin.attach.codemod import splice
from mldm_plugin.attach.flags import build_parser, take
from mldm_plugin.attach.script import read_script
from mldm_plugin.errors import MldmError


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m mldm_plugin SCRIPT flags…`: 0 when the script has ended well, 1 with one line on what to mend.

    A failure of the script itself is shown as Python shows it, with the script's own lines.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        build_parser().print_help()
        return 0 if arguments else 1
    try:
        return run(Path(arguments[0]), arguments[1:])
    except MldmError as error:
        sys.stderr.write(f"mldm: {error}\n")
        return 1


def run(script: Path, flags: Sequence[str]) -> int:
    """Run `script` as `__main__` to its end.

    Raises:
        MldmError: a flag, the script's layout, its data or a loss is not what it should be.
    """
    text = read_script(script)
    settings, rest = take(flags, text, script.stem)
    door = trainers.door_of(text)
    texts = {} if settings.by_frame or door else splice_all(text, script)
    spliced = texts.pop(script, text)
    kohya.install(texts)
    attachment = attach.start(settings)
    sys.argv[:] = [str(script), *rest]
    sys.path[0] = str(script.resolve().parent)
    if door:
        door.install(attachment, script)
    elif settings.by_frame:
        by_frame.install(attachment)
    status = _execute(spliced, script)
    if status == 0:
        attachment.finish()
    return status


def splice_all(text: str, script: Path) -> dict[Path, str]:
    """The script, and those modules beside it that need them too, with our calls in them.

    Raises:
        MldmError: the script's layout is not one that can be followed.
    """
    trainers.refuse_others(text, script)
    return kohya.splice(text, script) if kohya.is_script(text) else {script: splice(text, str(script))}


def _execute(text: str, script: Path) -> int:
    module = types.ModuleType("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module
    try:
        exec(compile(text, str(script), "exec", dont_inherit=True), module.__dict__)
    except MldmError:
        sys.stderr.write("\n")  # a progress bar may be open
        raise
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        own = error.__traceback__
        traceback.print_exception(type(error), error, own.tb_next if own else None)
        return 1
    return 0
