"""How guest memory travels between two QEMUs: capabilities, parameters, encryption and the incoming port."""
