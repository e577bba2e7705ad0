"""`python -m services.deployment.engine RUN_DIR`. Exit codes: 0 done, 3 error.json says why (a retry would not help), else a crash."""

import json
import os
import sys
from pathlib import Path

DONE, FAILED = 0, 3


class _WithoutPandas:
    """Arrow looks whether there is pandas, which takes a second to load; nothing here uses it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("the engine does without pandas", name=name)


def main(folder: Path) -> int:
    sys.meta_path.insert(0, _WithoutPandas())
    from libs.errors import AppError
    from libs.modelkit.package import write_file
    from services.deployment.engine.predict import predict

    try:
        predict(folder, json.loads((folder / "spec.json").read_bytes()))
    except AppError as error:
        write_file(folder / "error.json", json.dumps(error.as_dict(), allow_nan=False).encode())
        return FAILED
    return DONE


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m services.deployment.engine RUN_DIR")
    code = main(Path(sys.argv[1]).resolve())
    # Threads of ONNX Runtime and Arrow have nothing left to do.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
