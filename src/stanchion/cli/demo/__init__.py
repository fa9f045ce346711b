"""`stanchion demo`: worker processes, one set of limits, and the count afterwards."""
