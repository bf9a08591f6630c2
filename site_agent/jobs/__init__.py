"""The folder through which the agent and the trainer speak, and the runners that start a trainer on it."""
