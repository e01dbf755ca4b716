from sda.cli import main

main()
