"""Who is measured: stanchion, its peers, and the least that redis-py and a script can do."""
