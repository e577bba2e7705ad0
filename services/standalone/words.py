"""What the platform says to the person who starts it."""

from collections.abc import Mapping
from pathlib import Path


def greeting(home: Path, said: Mapping[str, str], seconds: float, *, key_given: bool, stop: str) -> str:
    """Where it is, the key that is shown once, and how to go on."""
    lines = [f"Lepton is ready at {said['url']} after {seconds:.1f} s. Its state is in {home}."]
    if said["api_key"]:
        lines += ["First API key, shown this once:", "", f"  export LEPTON_API_KEY={said['api_key']} LEPTON_URL={said['url']}", ""]
    elif key_given:
        lines += ["The API key is the one in LEPTON_API_KEY."]
    else:
        lines += ["API keys are those made before. To add one, start with LEPTON_API_KEY set to it."]
    lines += [f"Endpoints also answer the Open Inference Protocol over gRPC, at {said['grpc']}."]
    lines += [f"Documentation of the API: {said['url']}/docs", f"Stop it with {stop}."]
    return "\n".join(lines) + "\n"


def refusal(wrong: str, right: str) -> str:
    """Two lines: what is wrong, and what would be right."""
    return f"error: {wrong}\n  try: {right}\n"
