/* placeholder: see ARCHITECTURE.md, "Parser" */
