"""Where sessions are kept beyond a process: `protocol` says what a store does, each other module is one."""
