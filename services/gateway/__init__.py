"""REST for clients: authentication, rate limits, problems, streaming, inference routing. Owns nothing durable."""
