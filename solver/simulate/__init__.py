"""XSimulator, twice: closed forms of every policy over many candidates at once, and (in `events`) step by step."""
