module squib/bench/guest

go 1.24
