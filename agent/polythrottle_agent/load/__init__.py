"""The load generator: when queries are due, how they are sent, and what they are answered."""
