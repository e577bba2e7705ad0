"""A replica against other model servers: the same small network, the same requests, one core each, in one run."""
