"""Where observers send events to: one module for each kind of receiver."""
