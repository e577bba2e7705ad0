"""The inference path: a process of its own in front of the REST control plane, which cannot slow it down."""
