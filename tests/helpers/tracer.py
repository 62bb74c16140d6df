"""Run a command of tenas and note the files of the package whose functions were called: ``python tracer.py NOTES COMMAND...``"""

import json
import os
import sys
from pathlib import Path
from types import FrameType

import tenas
from tenas.cli import main

ROOT = f"{Path(tenas.__file__).parent}{os.sep}"


def apart(frame: FrameType | None) -> bool:
    """Whether a module of the package is being imported, or settings are being checked, which is no part of what a stage does:
    settings that come out otherwise are other inputs."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and (frame.f_code.co_name == "<module>" or name.startswith(f"{ROOT}settings")):
            return True
        frame = frame.f_back
    return False


def run(notes: Path, arguments: list[str]) -> int:
    called = set()

    def trace(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name not in called and name.startswith(ROOT) and not apart(frame):
            called.add(name)

    sys.setprofile(trace)
    try:
        status = main(arguments)
    finally:
        sys.setprofile(None)
    ours = [Path(name).relative_to(ROOT).as_posix() for name in called]
    notes.write_text(json.dumps({"called": ours, "torch": "torch" in sys.modules}))
    return status


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
