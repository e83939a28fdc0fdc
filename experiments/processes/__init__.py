"""One run by several processes: how they find each other, share work and end together."""
