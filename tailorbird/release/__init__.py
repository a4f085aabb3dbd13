"""Put versions into service and take them out."""
