"""Pictures: of tokens and streams, of plans, of measured curves. Each function returns a Figure."""
