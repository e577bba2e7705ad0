"""What is done to the bytes of a dataset: recognise, parse, type, profile, transform, preview.

Runs in a child process with limits (`python -m services.data.engine SPEC.json`), because the bytes and the SQL come from
strangers. Knows files and JSON only: no database of the service, no network, no protobuf.
"""
