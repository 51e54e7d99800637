"""Recovery: what decides (plan, states, evidence; pure) and what acts (steps, probes; the node's half)."""
