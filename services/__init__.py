"""The services. What is here happens before anything else in each of their processes."""

import os

# gRPC's fork handlers start its threads again in a child that is about to exec, where they crash it; nothing here forks without exec.
# gRPC reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
