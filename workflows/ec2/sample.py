"""Output of `workflows fleet init`: a fleet.yaml to start from, with the defaults."""

SAMPLE = """\
# An EC2 fleet. Durations: 90s, 30m, 12h. Only name is needed; the rest shows the defaults.
name: crawl
region: us-east-1
nodes: 2                # of 2 vCPUs: a new account may have 5 vCPUs of spot, and 5 on demand
min_nodes: 0            # if fewer come, none is kept; 0: all must come
results_host: false     # one more host, on demand, without keys: for luigid, results, a driver
types: [m7i.large, m6i.large, m7a.large, m6a.large, m5.large]
zones: any              # or [a, b]; subnets: [subnet-...] or vpc: vpc-... choose otherwise
spot: {strategy: price-capacity-optimized, on_demand_base: 0, fallback: true, max_price: null}
ami: ssm:al2023         # ssm:ubuntu-24.04, ssm:debian-13, ssm:/path, ami-...; pinned at first up
disk_gb: 30
scratch: /mnt           # instance-store disks are formatted and mounted here
packages: []
# pip: requirements.txt
# limits: {open_files: 1048576, processes: 65536}   # of each login of the user
# post_init: init.sh    # run as root, last; again when it changes
# profile: name         # an instance profile; none by default
access: {from: [me], address: public, ssh_port: 22, user: workflows}
ttl: {idle: 30m, max: 12h}
tags: {}
max_hourly_cost: null   # dollars; plan and up refuse more
slots: 0                # keys a node runs at once; 0: by its cores
slots_per_core: 1
boot_timeout: 5m
"""
