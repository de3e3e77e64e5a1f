# Inside the box: what every machine made of it needs. The project's Vagrantfile says the rest.
Vagrant.configure("2") do |config|
  config.ssh.username = "root"
  config.ssh.insert_key = false
  config.vm.synced_folder ".", "/vagrant", disabled: true
end
