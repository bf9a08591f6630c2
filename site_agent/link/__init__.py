"""How this site reaches the coordinator: it dials out, and nothing dials in. The only room of the agent with stubs."""
