"""The launcher's adapter for a cluster: each launch is a Job of one pod, whose files a courier carries to and fro."""
