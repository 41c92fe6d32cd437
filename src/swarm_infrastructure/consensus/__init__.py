"""Consensus: debates with arguments, one vote per agent, a quorum and a deadline, and an outcome in any case."""
