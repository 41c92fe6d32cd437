import hashlib
def content_hash(*f): return hashlib.sha256("|".join(f).encode()).hexdigest()[:32]
def similarity(a,b): return 1.0 if a==b else 0.0
