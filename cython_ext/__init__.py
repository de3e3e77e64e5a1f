"""The compiled data plane. Import it through appliance.dataplane only."""
