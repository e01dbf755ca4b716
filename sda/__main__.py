from sda.cli.main import main

main()
