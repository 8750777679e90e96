"""Does routing pay on state-space models? Runs that are recorded one by one."""
