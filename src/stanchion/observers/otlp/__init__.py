"""OpenTelemetry's form of what the observers see, and the way to a receiver of OTLP over HTTP."""
