"""What operators and routers do alike to the records of the control plane."""
