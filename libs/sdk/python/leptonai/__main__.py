"""`python -m leptonai` is `lepton`."""

from leptonai._cli import main

main()
