"""How much load the generator makes on one core, and how punctual it is, beside wrk against a fast server."""
