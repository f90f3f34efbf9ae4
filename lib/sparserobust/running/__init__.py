"""Many runs: each trained once, measured once, several at a time."""
