"""One guest watched through a monitor of the agent's own."""
