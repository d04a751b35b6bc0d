"""The agent: its four tools, the sandbox they run in, the session loop and the terminal UI."""
