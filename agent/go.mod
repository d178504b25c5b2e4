module squib/agent

go 1.24
