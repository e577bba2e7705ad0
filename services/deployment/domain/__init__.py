"""Decisions of the deployment service: pure functions of what they are told."""
