"""A news desk as a swarm: from feeds to scripts and videos, with or without a language model.

``sources`` reads feeds into articles; ``engine`` picks sentences, topics and scripts from them by rules.
"""
