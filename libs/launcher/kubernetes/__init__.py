"""The launcher's adapter for a cluster: a launch is a Job, or a pod of its group's Deployment; a courier carries its files to and fro."""
